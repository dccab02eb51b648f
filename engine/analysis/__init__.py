"""What a study's results say: results, speedup, ledger, summary, words; fixed_target,
convergence, family (what is tested),
naming, verdict (the headline), description (all else), ablation, ablation_plan,
ablation_family, ablation_statement, statements; figures (--json).
"""
