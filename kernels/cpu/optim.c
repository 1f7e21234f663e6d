#define KERNEL "optim_impl.h"
#include "typed.h"
