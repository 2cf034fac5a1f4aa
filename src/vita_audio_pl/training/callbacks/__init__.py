"""What happens around steps: checkpoints are asked for, bad steps undone, samples answered, the run watched."""
