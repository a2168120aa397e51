#!/bin/bash
#SBATCH --job-name=giraffe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
# Two machines train one model; what is passed goes on to `giraffe extend`:
#
#   sbatch configs/clusters/two-nodes.sh --data books.jsonl.gz --out runs/llama3-70b-32k
#
# The folder of --out, the model and the packed data must lie where both machines see them. srun
# starts the same command on each, and Slurm tells it which it is. Before the time limit the run is
# saved and the job is requeued, which Slurm does by itself only where it pre-empted a job; it goes
# on from there.
set -euo pipefail
config=${GIRAFFE_CONFIG:-clusters/two-nodes}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-64} # since 22.05 srun takes it from nowhere else
code=0
srun giraffe extend --config "$config" "$@" || code=$?
case $code in 130 | 143) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit $code
