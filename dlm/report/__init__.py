"""Pictures of what runs have left in their folders.

    python -m dlm.report runs=outputs/predict

Reading order: `runs` (what a folder of runs holds, and what it lacks), `pareto` (the front and its area), `table`,
`plots`, `page` (the report as one HTML file), `logs` (the same to a logger). `trace` is the page of one run's answers
as they were revealed (`trace=html` of predict). Both pages come from `assets`.

Knows neither models nor Lightning; only `config` and `__main__` know of Hydra.
"""

__all__ = ["assets", "config", "page", "pareto", "plots", "runs", "table", "trace", "training_page", "trainings"]
