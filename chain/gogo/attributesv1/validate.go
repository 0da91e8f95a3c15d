package attributesv1

import "fmt"

// Bounds of a list. The key's length is Akash's; the others are ours, far above
// what is in use, so that a list costs what it may at most.
const (
	MaxAttributes = 512  // in one list
	MaxKeyBytes   = 128  // a star at the end included
	MaxValueBytes = 1024 // of one value
)

// ValidateOffered checks attributes that a provider has, or an auditor signs.
// A key is a letter and one to 126 of letters, digits, and the signs _ / . and -.
func ValidateOffered(attributes []Attribute) error {
	return validate(attributes, false)
}

// ValidateRequired checks attributes that a tenant asks for. Their keys may
// end in a * as well, after at least two other characters.
func ValidateRequired(attributes []Attribute) error {
	return validate(attributes, true)
}

func validate(attributes []Attribute, star bool) error {
	if len(attributes) > MaxAttributes {
		return fmt.Errorf("there are %d attributes: give at most %d", len(attributes), MaxAttributes)
	}
	seen := make(map[string]bool, len(attributes))
	for i, a := range attributes {
		if !validKey(a.Key, star) {
			return fmt.Errorf("attributes[%d]: key %.64q is not a letter and then letters, digits, _ / . or -", i, a.Key)
		}
		if len(a.Value) > MaxValueBytes {
			return fmt.Errorf("attributes[%d]: value of %s has %d bytes: give at most %d", i, a.Key, len(a.Value), MaxValueBytes)
		}
		if seen[a.Key] {
			return fmt.Errorf("attributes[%d]: key %s is there twice", i, a.Key)
		}
		seen[a.Key] = true
	}
	return nil
}

func validKey(key string, star bool) bool {
	longest := MaxKeyBytes - 1
	if star {
		longest = MaxKeyBytes
	}
	if len(key) < 2 || len(key) > longest || !letter(key[0]) {
		return false
	}
	for i := 1; i < len(key); i++ {
		switch c := key[i]; {
		case letter(c), '0' <= c && c <= '9', c == '_':
		case c == '/' || c == '.' || c == '-':
			if i == MaxKeyBytes-1 {
				return false // the 128th is a letter, a digit, _ or *
			}
		case c == '*' && star && i == len(key)-1 && i >= 2:
		default:
			return false
		}
	}
	return true
}

func letter(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
