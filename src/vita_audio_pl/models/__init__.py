"""The speech language model: a Qwen2 or Qwen3 backbone, its MCTP heads, their losses and their files."""
