#define KERNEL "norm_impl.h"
#include "typed.h"
