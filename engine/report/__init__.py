"""One HTML file: tables, scores, rates, facts; plots, charts, ablation_charts, ablation_curves,
pictures; figures (for --json), report (the page, from the templates).
"""
