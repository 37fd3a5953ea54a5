package soccr

// OptionName is the name of an option in the table, or empty.
func OptionName(level, number int) string {
	for _, o := range options {
		if levels[o.level] == level && o.number == number {
			return o.name
		}
	}
	return ""
}

// Update reports whether golden files are to be written anew.
func Update() bool { return *update }
