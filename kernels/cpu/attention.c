#define KERNEL "attention_impl.h"
#include "typed.h"
