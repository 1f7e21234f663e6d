#define KERNEL "pooling_impl.h"
#include "typed.h"
