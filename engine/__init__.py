"""Models, FSDP training, checkpoints, fine-tuning, the convergence study, the command line.

Files in reading order.

What everything uses: errors, json_file, outcome, environment.

Models: positions, vit, methods, trivial, masked, mae, simmim, swin, simclr, flops.

Training: config, recipes, build, process_group, one_voice, parallel, communication, apex, lamb,
optim, schedule, train_step, held_out, corpus_fit, training, pretrain, stop, profiler, metrics,
recorder, pictures, pretext.

Runs and checkpoints: folder_lock, run_folder, run_state, checkpoint_files, checkpoint_reader,
checkpoint, encoder_file, nnunet_form, export, plan.

Fine-tuning: finetune_config, splits, task, dice, unetr, swin_unetr, segmentation, classification,
downstream, finetune.

The convergence study: compare_config, study_recipes, study_plan, variation, pool, study_pretext,
gather, compare, curves, speedup, ledger, study_results, study_summary, verdict.

Its report: study_plots, study_pictures, report_charts, report_tables, report_scores, report_rates,
ablation, ablation_charts, ablation_curves, report_pictures, report_run, report_figures, report.

The command line: cli, arguments, launch, demo, and the folder commands.
"""
