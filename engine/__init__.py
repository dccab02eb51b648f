"""Models, FSDP training, checkpoints, fine-tuning, the convergence study, the command line.

Loose files: errors (and exit codes), environment (what this machine has),
variables (of the environment, given back after a block).

Folders, each importing only what stands above it:
    arithmetic   how a step is computed on a device
    models       encoders, pretext methods, decoders
    distributed  ranks, FSDP2, signals, the launcher
    runs         what a run leaves on disk
    bucket       a run whose folder lies in a bucket
    transfer     weights that exist, taken over into an encoder of now
    training     one loop for whatever gives a loss for a batch
    finetune     the fine-tuning run
    probe        what a frozen encoder knows while it is pretrained
    pretrain     the pretraining run
    planning     what a run will take, before it runs
    predict      a fine-tuned network over new scans
    study        a convergence study, run
    analysis     what its results say
    report       one HTML file that shows it
    commands     the command line, a module a command
    face         what `import mim3d` gives
"""
