package lab

func boundPort(s *Session) error { return nil }
