#define KERNEL "winograd_impl.h"
#include "typed.h"
