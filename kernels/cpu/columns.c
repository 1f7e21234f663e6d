#define KERNEL "columns_impl.h"
#include "typed.h"
