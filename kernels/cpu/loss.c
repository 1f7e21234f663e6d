#define KERNEL "loss_impl.h"
#include "typed.h"
