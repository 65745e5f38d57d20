"""Reports on runs, made from the files in their folders.

    python -m dlm.report runs=outputs/predict

Reading order: `runs` (the runs in a folder, and what they lack), `pareto` (the front and its area), `table`, `plots`,
`page` (the report as one HTML file); `trainings` and `training_page` (the same for GRPO). `trace` is the page that
shows how one run's answers were revealed (`trace=html` of predict). `assets` renders all pages.

Independent of models and Lightning; only `config` and `__main__` use Hydra.
"""

__all__ = ["assets", "config", "page", "pareto", "plots", "runs", "table", "trace", "training_page", "trainings"]
