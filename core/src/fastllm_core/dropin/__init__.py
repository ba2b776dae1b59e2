"""The drop-in for transformers: `model.generate(..., custom_generate=...)` decodes with a pipeline of ours."""
