"""anGPT's baseline at anGPT's width: qknorm with a SwiGLU of 4d, as anGPT and nGPT have it, where it would be 8d/3."""

from dataclasses import replace

from lrsweep.schemes import find, register

register(replace(find("qknorm"), name="qknorm_4d", mlp_width="4d"))
