"""Every knob once, documented under it: YAML, `--set`, help and JSON schema come from here.

    target_length: 16k
    rope: {strategy: yarn}
    train: {steps: 60, window: 2k}

`building.build` collects every problem of a file and the `--set` overrides, then raises once.
"""
