#define KERNEL "activation_impl.h"
#include "typed.h"
