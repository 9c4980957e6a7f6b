"""A page and JSON endpoints over a checkpoint, for a browser on this machine.

Needs the extra `app` (Starlette and uvicorn). The page is three files of our
own without a build step: it asks no other server for anything, which its
content security policy enforces. `mico-jax serve` starts it.
"""
