"""A page and JSON endpoints over a checkpoint, for a browser on this machine.

Needs the extra `app` (Starlette and uvicorn). The page is three files of our
own without a build step: it asks no other server for anything, which its
content security policy enforces. `mico-jax serve` starts it.

Open: there are no passwords, so that another --host than this machine's is for
networks one trusts. Videos of a gallery play without their sound, the first 20
seconds. Samples of an index that come from other data than files and manifests
have no preview, as an index does not keep how they were read. A decoder that
hangs is given up, and its thread left behind. The first question of each kind
waits for its program to be compiled, unless an earlier start has kept it.
"""
