"""What people read: tables and figures, made from the results table and nothing else."""
