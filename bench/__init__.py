"""Every stage timed side by side with what a user would pick instead; ratios within one run.

Files in reading order, for all stages: corpora (generated volumes), timing (clocks of a device),
other_work (who else keeps the CPUs busy), noise (what a figure varies by, which ratios are
resolved), sharing (chunks that crops of a batch share). Folders, one for each stage: convert,
loader, remote, kernels, step; gpu is what a machine with a GPU is asked first. Afterwards:
regression (what moved since the stored baseline), keep (a study put away), reports (a kept study
drawn again), figures (tables of README and docs).
`gpu.sh` runs the tests and every stage on a machine with a GPU. Dated figures are in `results/`,
the baseline taken from them in `baseline/`.
"""
