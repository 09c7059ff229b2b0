"""What people read about a run, from the bucket alone.

- ``history``      what the events mean: spans of the workers, interruptions, resumes, checkpoints
- ``summary``      records in, one :class:`Summary` out: every number that a report shows
- ``formatting``   numbers as text, and the facts that every report begins with
- ``terminal``     a summary for a terminal, with a small loss curve
- ``html``         a summary as one HTML file; ``page.css`` is its style
- ``report``       writes that file into the run's folder
- ``plots``        plots over steps: loss, learning rate, throughput; ``timeline``: the plot over wall time
- ``plot_style``   palette, style, and a figure as SVG or PNG
- ``status``       a run's progress now
- ``diff``         what differs between two runs
- ``cost``         what runs have cost, and will have cost at their end
- ``metric_tags``  which number goes under which tag in TensorBoard, Weights & Biases and MLflow
- ``tensorboard``  metrics as TensorBoard's event files
- ``model_card``   a model card; ``publish``: a run's model prepared for the Hub

Only the plots need matplotlib, and only when they draw.
"""
