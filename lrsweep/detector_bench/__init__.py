"""``make bench-detector``: the detector and other tools' rules on a folder of labelled training curves.

The rules are written anew from what their authors published, with their defaults; :mod:`lrsweep.detect` knows nothing
of them.
"""
