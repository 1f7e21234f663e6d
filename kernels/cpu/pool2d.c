#define KERNEL "pool2d_impl.h"
#include "typed.h"
