/* One of two wrappers that must not meet in one process. */
#define NAME "alone_b"
#include "alone.h"
