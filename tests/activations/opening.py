"""Activations of a single layer."""

from sae_sweeps.activations.store import open_layers


def open_activations(model, layer, data, activations, num_tokens, folder, device, *, key, **more):
    (store,) = open_layers(model, [(layer, key)], data, activations, num_tokens, folder, device, **more)
    if isinstance(store, Exception):
        raise store
    return store
