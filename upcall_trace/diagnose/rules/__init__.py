"""One module a family of codes; `registry.rules()` has them all."""
