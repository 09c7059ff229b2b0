"""Programs that test the GPUs in processes of their own: whole steps, a first all-reduce."""
