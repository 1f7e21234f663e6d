#define KERNEL "embedding_impl.h"
#include "typed.h"
