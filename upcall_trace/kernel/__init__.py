"""What a guest kernel does with each upcall request, as a pure model. docs/kernel-model.md."""
