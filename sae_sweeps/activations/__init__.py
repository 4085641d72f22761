"""Language model -> contexts -> harvest -> store -> sampler: where training batches come from."""
