#include "sfd.h"

#define SFD_ERROR_TEXT(name, code, text) \
    case code:                           \
        return text;

const char *sfd_error_string(int error)
{
    switch (error) {
        SFD_ERRORS(SFD_ERROR_TEXT)
    default:
        return "not an error code of this library";
    }
}
