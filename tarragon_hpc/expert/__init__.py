"""Expert worker (EW): the weights of some experts, all their layers, and no state (DESIGN §2)."""
