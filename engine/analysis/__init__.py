"""What a study's results say: results, speedup, ledger, summary, ablation, words, verdict,
statements, figures (for --json).
"""
