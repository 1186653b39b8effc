"""Neural tangent kernel data selection in JAX."""
