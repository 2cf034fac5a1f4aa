"""The speech language model: a Qwen2 backbone, its MCTP heads, their losses and their files."""
