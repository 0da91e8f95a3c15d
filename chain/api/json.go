package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// wirePrefix begins the proto package of every light message; on the wire, in
// type URLs and in JSON it does not appear.
const wirePrefix = "croft.wire."

// decPlaces is how many decimals a Dec has. On the wire it is the integer
// value × 10^18.
const decPlaces = 18

// JSON is m in the form that the REST gateway, events and `-o json` of the real
// clients have: names as in the .proto files, in their order, every field
// present ("", [], "0", null for no bytes and for a message that may be absent
// and is), 64-bit integers as strings, enums by name, bytes in base64, decimals with eighteen
// places, resource values as digits, durations as "3600s", times in RFC 3339,
// and an Any as "@type" beside the fields of what it holds. An Any of a type
// that this program does not link keeps its bytes under "value".
//
// It fails only for content that no right chain sends, such as a Dec that is no
// integer. Equal messages give equal bytes.
func JSON(m proto.Message) ([]byte, error) {
	var w jsonWriter
	if err := w.message(m.ProtoReflect(), ""); err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", strings.TrimPrefix(string(m.ProtoReflect().Descriptor().FullName()), wirePrefix), err)
	}
	return w.Bytes(), nil
}

type jsonWriter struct{ bytes.Buffer }

// message writes an object, or the short form of the well-known types. A typ
// that is not empty becomes its "@type".
func (w *jsonWriter) message(m protoreflect.Message, typ string) error {
	md := m.Descriptor()
	switch md.FullName() {
	case "google.protobuf.Any":
		return w.any(m)
	case "google.protobuf.Duration":
		seconds, nanos := secondsAndNanos(m)
		w.text(durationText(seconds, nanos))
		return nil
	case "google.protobuf.Timestamp":
		seconds, nanos := secondsAndNanos(m)
		w.text(time.Unix(seconds, nanos).UTC().Format(time.RFC3339Nano))
		return nil
	}
	w.WriteByte('{')
	first := true
	name := func(key string) {
		if !first {
			w.WriteByte(',')
		}
		first = false
		w.text(key)
		w.WriteByte(':')
	}
	if typ != "" {
		name("@type")
		w.text(typ)
	}
	if isResourceValue(md) {
		name("val")
		w.text(orZero(string(m.Get(md.Fields().ByName("val")).Bytes())))
		w.WriteByte('}')
		return nil
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.ContainingOneof() != nil && !m.Has(fd) {
			continue
		}
		name(fd.TextName())
		if err := w.field(m, fd); err != nil {
			return fmt.Errorf("%s: %w", fd.TextName(), err)
		}
	}
	w.WriteByte('}')
	return nil
}

func (w *jsonWriter) field(m protoreflect.Message, fd protoreflect.FieldDescriptor) error {
	switch {
	case fd.IsMap():
		return fmt.Errorf("maps have no form in this contract") // no message has one
	case fd.IsList():
		list := m.Get(fd).List()
		w.WriteByte('[')
		for i := range list.Len() {
			if i > 0 {
				w.WriteByte(',')
			}
			if err := w.value(fd, list.Get(i)); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		w.WriteByte(']')
		return nil
	case fd.Message() != nil && !m.Has(fd) && mayBeAbsent(fd):
		w.WriteString("null")
		return nil
	}
	return w.value(fd, m.Get(fd))
}

func (w *jsonWriter) value(fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return w.message(v.Message(), "")
	case protoreflect.BoolKind:
		w.WriteString(strconv.FormatBool(v.Bool()))
	case protoreflect.EnumKind:
		if ev := fd.Enum().Values().ByNumber(v.Enum()); ev != nil {
			w.text(string(ev.Name()))
		} else {
			w.WriteString(strconv.Itoa(int(v.Enum())))
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		w.WriteString(strconv.FormatInt(v.Int(), 10))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		w.WriteString(strconv.FormatUint(v.Uint(), 10))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		w.text(strconv.FormatInt(v.Int(), 10))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		w.text(strconv.FormatUint(v.Uint(), 10))
	case protoreflect.BytesKind:
		if len(v.Bytes()) == 0 {
			w.WriteString("null")
			break
		}
		w.text(base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.StringKind:
		return w.string(fd, v.String())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return fmt.Errorf("floating point has no place in this contract")
	}
	return nil
}

// string writes text; where the contract has a number in it, as that number.
func (w *jsonWriter) string(fd protoreflect.FieldDescriptor, s string) error {
	switch fd.FullName() {
	case wirePrefix + "cosmos.base.v1beta1.DecCoin.amount", wirePrefix + "akash.escrow.types.v1.Balance.amount":
		dec, err := decText(s)
		if err != nil {
			return err
		}
		w.text(dec)
	case wirePrefix + "cosmos.base.v1beta1.Coin.amount":
		w.text(orZero(s))
	default:
		w.text(s)
	}
	return nil
}

func (w *jsonWriter) any(m protoreflect.Message) error {
	fields := m.Descriptor().Fields()
	url, value := m.Get(fields.ByName("type_url")).String(), m.Get(fields.ByName("value")).Bytes()
	full := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
	typ, err := protoregistry.GlobalTypes.FindMessageByName(wirePrefix + full)
	if err != nil {
		w.WriteString(`{"@type":`)
		w.text(url)
		w.WriteString(`,"value":`)
		w.text(base64.StdEncoding.EncodeToString(value))
		w.WriteByte('}')
		return nil
	}
	held := typ.New()
	if err := proto.Unmarshal(value, held.Interface()); err != nil {
		return fmt.Errorf("read %s: %w", full, err)
	}
	return w.message(held, url)
}

func (w *jsonWriter) text(s string) {
	quoted, _ := json.Marshal(s) // a string always has a JSON form
	w.Write(quoted)
}

// mayBeAbsent reports whether a singular message field is a pointer in the
// contract (json_test.go holds it against the .proto files). All others are
// values there: absent they are written with empty fields.
func mayBeAbsent(fd protoreflect.FieldDescriptor) bool {
	parent := strings.TrimPrefix(string(fd.ContainingMessage().FullName()), wirePrefix)
	if !strings.HasPrefix(parent, "akash.") {
		return true
	}
	switch fd.Name() {
	case "pagination", "reclamation", "reclamation_window", "cpu", "memory", "gpu", "prices":
		return true
	case "info":
		return parent == "akash.discovery.v1.GetInfoResponse"
	case "price":
		return strings.HasSuffix(parent, "OfferPrice")
	}
	return false
}

func isResourceValue(md protoreflect.MessageDescriptor) bool {
	return md.FullName() == wirePrefix+"akash.base.resources.v1beta4.ResourceValue"
}

// decText is a Dec, which on the wire is an integer × 10^18, as a number with
// eighteen decimals: "250500000000000000000" is "250.500000000000000000".
func decText(wire string) (string, error) {
	n, ok := new(big.Int).SetString(orZero(wire), 10)
	if !ok {
		return "", fmt.Errorf("decimal %q is no integer × 10^18", wire)
	}
	digits := new(big.Int).Abs(n).String()
	if len(digits) <= decPlaces {
		digits = strings.Repeat("0", decPlaces+1-len(digits)) + digits
	}
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
	}
	at := len(digits) - decPlaces
	return sign + digits[:at] + "." + digits[at:], nil
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

func secondsAndNanos(m protoreflect.Message) (seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	return m.Get(fields.ByName("seconds")).Int(), m.Get(fields.ByName("nanos")).Int()
}

// durationText has as many decimals as are needed, in steps of three.
func durationText(seconds, nanos int64) string {
	sign := ""
	if seconds < 0 || nanos < 0 {
		sign, seconds, nanos = "-", -seconds, -nanos
	}
	s := fmt.Sprintf("%s%d.%09d", sign, seconds, nanos)
	s = strings.TrimSuffix(s, "000")
	s = strings.TrimSuffix(s, "000")
	return strings.TrimSuffix(s, ".000") + "s"
}
