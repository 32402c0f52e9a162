/* One of two wrappers that must not meet in one process. */
#define NAME "alone_a"
#include "alone.h"
