"""What people read about a run, from the bucket alone.

- ``history``      what the events mean: spans of the workers, interruptions, resumes, checkpoints
- ``summary``      records in, one :class:`~bafogpt.reports.summary.Summary` out: every number that a report shows
- ``formatting``   numbers as text, and the facts at the top of every report
- ``terminal``     a summary for a terminal, with a small loss curve
- ``html``         a summary as one HTML file, ``report.html`` in the run's folder; ``page.css`` is its style
- ``plots``        loss, learning rate, throughput over the steps; ``timeline``: workers and checkpoints over time
- ``plot_style``   palette, style, and a figure as SVG or PNG
- ``status``       a run's state and progress now
- ``diff``         the differences of two runs
- ``cost``         what runs have cost, and their projected cost
- ``metric_tags``  the tag of each metric in TensorBoard, Weights & Biases and MLflow
- ``tensorboard``  metrics as TensorBoard event files
- ``model_card``   facts for a model card; ``publish``: a run's model prepared for the Hub

Only the plots need matplotlib, which is imported when they are drawn.
"""
