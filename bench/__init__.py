"""Every stage timed side by side with what a user would pick instead; ratios within one run.

Files in reading order: timing; convert, convert_jobs, convert_peers, table_open, other_work;
loader, loader_gpu, loader_peers, corpora; kernels, kernel_cases, kernel_recipes, kernel_runs,
kernel_timings, roofline; optim; step, step_peers, step_profile; gpu_ready, gpu_summary; reports
(a kept study drawn again), figures (tables of README and docs), regression (what moved since the
stored baseline).
`gpu.sh` runs the tests and every stage on a machine with a GPU. Dated figures are in `results/`,
the baseline taken from them in `baseline/`.
"""
