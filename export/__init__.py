"""From a checkpoint to a bundle: graphs, quantized weights, tokenizer, model card. Needs the extra `export`."""
