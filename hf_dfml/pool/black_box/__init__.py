"""Members that only answer: in this process, behind HTTP, or as Inference Endpoints."""
