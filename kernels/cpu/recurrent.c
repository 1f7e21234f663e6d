#define KERNEL "recurrent_impl.h"
#include "typed.h"
