"""Fine-tuning: pairs → backward, m0, m1, m2, with Ray Train and DeepSpeed ZeRO."""
