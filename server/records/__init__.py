"""What a run tells: figures of its rounds, the summary, pictures, logs."""
