"""The hardening campaign: giraffe's commands under kills, full disks, damage and hostile input."""
