"""One HTML file that shows a study, made of sections.

section (what a page is made of), palette, plots (charts), panels (what stands in them), pictures;
the sections' own files in the order of the page: headline, speedup, ablation (ablation_charts,
ablation_curves), finetuning (scores), pretext, rates, cost, provenance (limits); report, the page.
"""
