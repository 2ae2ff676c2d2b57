"""Engine `te`: Transformer Engine's products, and for every cast the faster of its kernels and ours.

Which is the faster on an H200 at ultra's widths: python -m yxanul.tools.bench --what=casts. Transformer Engine adds, and
transposes what its norm and SwiGLU wrote, in kernels of their own. Both round alike; sums and exponentials differ in the
last bits.
"""

from yxanul.kernels.attention_rope import split
from yxanul.kernels.fp8_casts import dswiglu_cast, norm_cast, swiglu_cast
from yxanul.kernels.fp8_rope import turn_back_cast
from yxanul.kernels.fp8_te import cast, matmul, norm_backward

__all__ = ['cast', 'dswiglu_cast', 'matmul', 'norm_backward', 'norm_cast', 'split', 'swiglu_cast', 'turn_back_cast']
