"""A server of trained models: the Open Inference Protocol over gRPC and REST, batches over MPI."""
